"""Every field of a config, once, with its type, unit and source. The other configs are deltas on this one.

Model keys keep the names of the published score_sde configs, so that theirs can be copied over line by line.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> Any:  # a ConfigDict, whose fields no type checker knows
    """The settings shared by all experiments; locked against unknown keys and wrong types."""
    config = ConfigDict()
    config.seed = 0  # root of every random number: sample i uses fold_in(key(seed), i)
    config.compilation_cache = "~/.cache/gotta-go-fast"  # folder for compiled programs; empty for none

    # A setting that is None keeps the process's own default, which its class in sde_lib/ states. A value for
    # a setting that the process does not have is an error.
    config.sde = sde = ConfigDict()
    sde.name = "ve"  # a key of PROCESSES in sde_lib/presets.py
    sde.sigma_min = placeholder(float)  # VE: smallest noise level, data units
    sde.sigma_max = placeholder(float)  # VE: largest noise level, data units
    sde.beta_min = placeholder(float)  # VP and sub-VP: noise rate at t = 0
    sde.beta_max = placeholder(float)  # VP and sub-VP: noise rate at t = 1
    sde.s = placeholder(float)  # cosine_vp: offset of the schedule
    sde.schedule = placeholder(str)  # discrete_vp: linear, scaled_linear or squaredcos_cap_v2
    sde.beta_start = placeholder(float)  # discrete_vp: first beta of the table
    sde.beta_end = placeholder(float)  # discrete_vp: last beta of the table
    sde.num_levels = placeholder(int)  # discrete_vp: length of the table
    sde.eps = placeholder(float)  # end time; 1e-5 for VE, 1e-3 for VP and sub-VP (paper, section 4)
    sde.T = placeholder(float)  # start time

    # A setting that is None keeps the solver's own default, which its class in solvers/ states. A value for a
    # setting that the solver does not have is an error.
    config.solver = solver = ConfigDict()
    solver.name = "adaptive"  # a key of SOLVERS in solvers/presets.py
    solver.denoise = True  # end with one Tweedie step (one more evaluation)
    solver.eps_rel = placeholder(float)  # Adaptive, AdaptiveExponential: relative tolerance, the one knob
    solver.eps_abs = placeholder(float)  # the same two: absolute tolerance, data units
    solver.num_evaluations = placeholder(int)  # AdaptiveExponential: in place of a tolerance
    solver.data_deviation = placeholder(float)  # AdaptiveExponential: of the data's elements
    solver.safety = placeholder(float)  # Adaptive: theta (arXiv 2105.14080, Algorithm 1)
    solver.exponent = placeholder(float)  # Adaptive: r in h <- theta h error^-r
    solver.first_step = placeholder(float)  # Adaptive: h at t = T
    solver.norm = placeholder(str)  # Adaptive: of error/tolerance over a sample: l2_scaled, l2 or linf
    solver.extrapolate = placeholder(bool)  # Adaptive: keep the higher-order value
    solver.use_previous = placeholder(bool)  # Adaptive: |x'_prev| in the tolerance
    solver.error_estimate = placeholder(str)  # Adaptive: heun (stochastic improved Euler) or lamba
    solver.noise_on_rejection = placeholder(str)  # Adaptive: bridge, redraw (as published) or hold
    solver.num_steps = placeholder(int)  # every solver with fixed steps
    solver.grid = placeholder(str)  # where the fixed steps end: uniform_t, uniform_log_snr or edm
    solver.rho = placeholder(float)  # the edm grid (arXiv 2206.00364, eq. 5)
    solver.predictor = placeholder(str)  # predictor_corrector: euler_maruyama, reverse_diffusion, ancestral
    solver.snr = placeholder(float)  # Langevin steps: 0.16 CIFAR-10 VE, 0.01 VP, 0.075 at 256^2
    solver.corrector_steps = placeholder(int)  # Langevin steps at each noise level
    solver.eta = placeholder(float)  # DDIM, AdaptiveExponential: 0 (ODE) to 1 (all of the noise)
    solver.order = placeholder(int)  # DPM-Solver++, UniPC, ER-SDE-Solver
    solver.polynomial = placeholder(str)  # DEIS: variable of its polynomials: t or log_rho
    solver.tau = placeholder(float)  # SA-Solver: 0 (ODE), 1 (reverse SDE) or any other share of the noise
    solver.predictor_order = placeholder(int)  # SA-Solver: 1 to 3
    solver.corrector_order = placeholder(int)  # SA-Solver: 1 to 4
    solver.rtol = placeholder(float)  # RK45: relative tolerance
    solver.atol = placeholder(float)  # RK45: absolute tolerance, data units
    solver.churn = placeholder(float)  # EDM: S_churn, with noise from sigma/alpha churn_min to churn_max
    solver.churn_min = placeholder(float)  # EDM: S_tmin
    solver.churn_max = placeholder(float)  # EDM: S_tmax
    solver.churn_noise = placeholder(float)  # EDM: S_noise

    # What suits this experiment's process and data better than a class's own default, or was published with
    # it. A solver without the setting ignores it; config.solver overrides it.
    config.solver_defaults = defaults = ConfigDict()
    defaults.first_step = placeholder(float)  # 0.01 for VP and FFHQ, 0.5 for VE (arXiv 2105.14080, appendix)
    defaults.eps_abs = placeholder(float)  # one grey level: 1/256 for images in [0, 1], 2/256 for [-1, 1]
    defaults.data_deviation = placeholder(float)  # 0.25 for images in [0, 1]; None for 0.5, of [-1, 1]
    defaults.noise_on_rejection = "redraw"  # as published; solvers/adaptive.py says how it biases

    # Classifier-free guidance of a class-conditional network: sde_lib/guidance.py says what each does.
    config.guidance = guidance = ConfigDict()
    guidance.scale = 1.0  # 1 for none; any other value takes two evaluations of the network a call
    guidance.interval = placeholder(tuple)  # (low, high): noise levels sigma/alpha in which it acts; all
    guidance.rescale = 0.0  # from 0 to 1, towards the deviation of images without guidance

    config.model = model = ConfigDict()
    model.name = "ncsnpp"  # ncsnpp (NCSN++ and DDPM++) or ddpm
    model.checkpoint = placeholder(str)  # path from the project's root or absolute; none yet: train
    model.mismatch_allowed = ()  # keys that may differ from the checkpoint's training: ("sde.sigma_max",)
    model.nf = 128  # channels at the first resolution
    model.ch_mult = (1, 2, 2, 2)  # channels at each resolution, in multiples of nf
    model.num_res_blocks = 4  # at each resolution
    model.attn_resolutions = (16,)  # image sizes at which attention is used
    model.dropout = 0.1
    model.patch_size = 1  # ncsnpp: pixels a side of the squares that the network sees as one pixel
    model.resamp_with_conv = True
    model.conditional = True  # on time
    model.fir = False  # resample with a finite-impulse-response filter
    model.fir_kernel = (1, 3, 3, 1)
    model.skip_rescale = True  # divide residual sums by sqrt(2)
    model.resblock_type = "biggan"  # biggan or ddpm
    model.progressive = "none"  # none, output_skip or residual
    model.progressive_input = "none"  # none, input_skip or residual
    model.progressive_combine = "sum"  # sum or cat
    model.embedding_type = "positional"  # of the label: positional, fourier (of its log), fourier_of_label
    model.fourier_scale = 16.0
    model.init_scale = 0.0  # of the last convolutions' weights
    model.scale_by_sigma = False  # divide the output by sigma (VE)
    model.norm_groups = 32  # ddpm: groups of channels of a normalisation
    model.norm_epsilon = 1e-6  # ddpm: what it adds to the variance
    model.attn_every_up_block = False  # ddpm: attention on the way up not only after a size's last block
    model.attn_head_dim = placeholder(int)  # ddpm: channels of an attention head; None for one head of all
    model.freq_shift = 1  # ddpm: of the time embedding: 1 for a last frequency of 1e-4, 0 for the one after
    model.downsample_padding = 0  # ddpm: a convolution's zeros: 0 for right and below, 1 for all sides
    model.num_classes = 0  # of a class-conditional network
    # What the network predicts and the label that it gets, as sde_lib.as_score takes them; None for those of
    # the networks published for the process, or, with sigma_data, for EDM's network and the published label.
    model.prediction = placeholder(str)  # score, epsilon, denoised, v, velocity or edm
    model.time = placeholder(str)  # t, log_sigma or index
    model.sigma_data = placeholder(float)  # edm: wrap the network as EDM does, around data of this deviation
    model.dtype = "float32"  # of the network's computation: float32 or bfloat16

    config.data = data = ConfigDict()
    data.name = "digits"  # digits, or as tensorflow-datasets calls it: see data/sources.py, docs/data.md
    data.path = placeholder(str)  # folder, .zip or .npz of images, or of prepared tensorflow-datasets
    data.split = placeholder(str)  # train by default; of files at data.path, a name only
    data.image_size = 8  # pixels a side; with image_width, the height
    data.image_width = placeholder(int)  # pixels; None for squares
    data.num_channels = 1
    data.crop = placeholder(int)  # side of the central square taken first, pixels
    data.resize = placeholder(str)  # of the central part: box, bilinear, bicubic or lanczos; or pad with 0
    data.centered = False  # images in [-1, 1] (VP) instead of [0, 1] (VE)
    data.random_flip = False  # horizontally, in training
    data.uniform_dequantization = False  # add U(0, 1) of a grey level, in training

    config.training = training = ConfigDict()
    training.batch_size = 128
    training.num_steps = 1_300_000
    training.checkpoint_every = 10_000  # steps
    training.snapshot_every = 50_000  # steps; a sample grid
    training.log_every = 100  # steps
    training.weighting = "sigma"  # of the loss: sigma(t)^2, likelihood (arXiv 2101.09258) or edm (2206.00364)
    training.learning_rate = 2e-4  # Adam; betas 0.9 and 0.999 (arXiv 2011.13456, appendix H)
    training.warmup_steps = 5000  # linear from 0
    training.gradient_clip = 1.0  # global norm
    training.ema_rate = 0.9999  # of the weights' moving average
    training.ema_warmup = False  # average over fewer steps at first: rate min(ema_rate, (1 + n)/(10 + n))
    training.accumulate = 1  # parts of a batch, one after the other, for less memory
    training.label_dropout = 0.1  # share of images without their class; guidance needs it (arXiv 2207.12598)

    config.eval = evaluation = ConfigDict()
    evaluation.num_samples = 50_000
    evaluation.batch_size = 128  # lanes
    # of a class-conditional network: balanced (sample i has class i mod n), all (drawn), or one's number
    evaluation.classes = "balanced"
    evaluation.max_evaluations = 100_000  # a sample that needs more ends with a status
    evaluation.rounding = "nearest"  # to 256 grey levels: nearest, or truncate as published figures have it
    # of FID and IS: the shipped classifiers digits, mnist and cifar10; inception (2,048 features),
    # inception_768, inception_192 or inception_64; or a function of your own, MODULE:FUNCTION
    evaluation.features = "inception"
    evaluation.inception_weights = placeholder(str)  # its .pth file; None: cached, or downloaded
    evaluation.shard_size = 1024  # samples a file
    evaluation.reference = placeholder(str)  # file of statistics; None for those of the data

    evaluation.fid_infinity = False  # also FID extrapolated to infinitely many samples (arXiv 1911.07023)
    # samples and images of the data that KID, sliced Wasserstein distance, precision and recall, density and
    # coverage compare; 0 for none
    evaluation.compared = 0

    # --mode=likelihood: log p(x) by the probability-flow ODE, see solvers/likelihood.py
    config.likelihood = likelihood = ConfigDict()
    likelihood.rtol = 1e-5  # of the ODE's steps
    likelihood.atol = 1e-5  # data units, and nats a dimension
    likelihood.divergence = "hutchinson"  # hutchinson, or exact for images of few pixels
    likelihood.num_probes = placeholder(int)  # of hutchinson; its standard error shrinks as the root

    return config.lock()
