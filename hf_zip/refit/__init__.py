"""Closed-form refits: what a merged model's layers should compute, solved layer by layer."""

from hf_zip.refit.ridge import regress, ridge

__all__ = ["regress", "ridge"]
