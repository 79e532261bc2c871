"""Galaxies by four networks that others trained, drawn by a solver of this project; writes galaxies.png.

    pip install galaxygrad==0.1.9
    python -m examples.galaxies

The networks of galaxygrad (Sampson et al., arXiv 2401.07313) know single images of galaxies in surveys, in
JAX and Equinox. Their process is a VP whose noise rate is constant, with the time from 0 to 10.
"""

import jax
import numpy as np
from galaxygrad import scorenet  # pyright: ignore[reportMissingImports]
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sde_lib import VPSDE
from solvers import AdaptiveExponential, sample

SIDES = {"HSC_32": 32, "ZTF_32": 32, "LSST_60": 60, "QUASAR_72": 72}  # of the images of each network
# The pixels of LSST_60 are 7.1 ± 0.4, and its network needs the noise at the levels where it finds the 7.1.
SOLVERS = {"LSST_60": AdaptiveExponential(data_deviation=7.1, num_evaluations=20)}

sde = VPSDE(beta_min=10.0, beta_max=10.0)  # the integral of beta is 10 t, up to their 10 at t = 1
figure = Figure(figsize=(8, 4), layout="constrained")
FigureCanvasAgg(figure)

for row, (name, side) in zip(figure.subplots(4, 8), SIDES.items(), strict=True):
    network = getattr(scorenet, name)  # of one image [1, h, w]

    def score_fn(x, t, network=network):
        return jax.vmap(network)(x, 10 * t)

    settings = {"key": jax.random.key(0), "shape": (1, side, side), "num_samples": len(row)}
    solution = sample(score_fn, sde, SOLVERS.get(name, AdaptiveExponential()), **settings)
    print(f"{name}: {solution.nfe.mean():.0f} evaluations a sample, {solution.failed} failed")
    for axes, image in zip(row, np.asarray(solution.x)[:, 0], strict=True):
        axes.imshow(image, cmap="gray")  # the logarithm of the brightness, as the networks have it
        axes.set_axis_off()
figure.savefig("galaxies.png")
