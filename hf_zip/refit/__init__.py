"""Closed-form refits: what a merged model's layers should compute, solved layer by layer."""

from hf_zip.refit.ridge import ridge

__all__ = ["ridge"]
