"""ZipFit of post-norm models, whose normalisations stand in the stream."""

from hf_zip.refit.post_norm.fit import zipfit_post_norm

__all__ = ["zipfit_post_norm"]
