"""Which features of several models belong together: pure functions from similarities to maps."""
