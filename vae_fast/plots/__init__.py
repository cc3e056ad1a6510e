"""Pictures of training runs and of fitted models, with matplotlib (an extra)."""

from vae_fast.plots._figure import literal, require
from vae_fast.plots.explorer import Explorer, LatentPlane, explorer_picture, latent_plane
from vae_fast.plots.mixture import (
    bounds_of,
    covariance_matrices,
    density_1d,
    density_2d,
    draw_density,
    draw_density_1d,
    draw_ellipses,
    draw_points,
    log_likelihood_curve,
)
from vae_fast.plots.page import explorer_page
from vae_fast.plots.readings import Readings, draw_reading, load_readings
from vae_fast.plots.training import image_grid, latent_scatter, loss_curve, principal_components

__all__ = [
    "Explorer",
    "LatentPlane",
    "Readings",
    "bounds_of",
    "covariance_matrices",
    "density_1d",
    "density_2d",
    "draw_density",
    "draw_density_1d",
    "draw_ellipses",
    "draw_points",
    "draw_reading",
    "explorer_page",
    "explorer_picture",
    "image_grid",
    "latent_plane",
    "latent_scatter",
    "literal",
    "load_readings",
    "log_likelihood_curve",
    "loss_curve",
    "principal_components",
    "require",
]
