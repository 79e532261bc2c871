r"""The network of DDPM on CIFAR-10, on its own chain of 1,000 noise levels; weights as diffusers saved them.

python main.py --config=configs/vp/ddpm_cifar10.py --checkpoint=checkpoints/ddpm-cifar10-32

The checkpoint is the folder https://huggingface.co/google/ddpm-cifar10-32, of which config.json,
scheduler_config.json and diffusion_pytorch_model.safetensors (or .bin) are read. It could not be downloaded
where this was written: what is tested is other folders of this format.

Published, by ancestral sampling with 1,000 evaluations a sample: FID 3.17 and IS 9.46 (arXiv 2006.11239,
Table 1). That sampler clips every denoised image to [-1, 1]; the solvers here do not. No FID is published
for it with this solver.
"""

from configs.vp.cifar10_adaptive import get_config as ddpmpp_config


def get_config():
    config = ddpmpp_config()
    config.sde.name = "discrete_vp"
    config.model.name = "ddpm"
    config.model.num_res_blocks = 2
    config.model.attn_every_up_block = True
    config.model.prediction = "epsilon"
    config.model.time = "index"
    return config
