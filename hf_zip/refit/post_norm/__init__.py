"""ZipFit of post-norm models, whose normalisations stand in the stream."""

from hf_zip.refit.post_norm.fit import zipfit_post_norm
from hf_zip.refit.post_norm.form import check_post_norm, post_norm_obstacle

__all__ = ["check_post_norm", "post_norm_obstacle", "zipfit_post_norm"]
