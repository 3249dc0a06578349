"""The maths of diffusion. No weights in here: a model is any callable (x_t, t) -> prediction."""

from course_utils.diffusion.dpm_solver import dpmpp_2m_step, half_log_snr, log_snr_timesteps
from course_utils.diffusion.exact import gaussian_mixture_denoiser, gaussian_mixture_sample
from course_utils.diffusion.forward import add_noise, forward_step
from course_utils.diffusion.guidance import drop_condition, guided, in_interval
from course_utils.diffusion.reverse import (
    PREDICTION_TYPES,
    Denoiser,
    decoder_nll,
    denoising_loss,
    elbo_terms,
    elbo_weight,
    gaussian_kl,
    posterior,
    predict_noise,
    predict_x0,
    prior_kl,
    target,
)
from course_utils.diffusion.samplers import SAMPLERS, ddim_step, ddpm_step, noise_like, sample, sampling_loop
from course_utils.diffusion.schedule import (
    SPACINGS,
    NoiseSchedule,
    check_inputs,
    cosine_betas,
    extract,
    linear_betas,
    logit_normal_timesteps,
    scaled_linear_betas,
    shift_timesteps,
    snr,
)

__all__ = [
    "PREDICTION_TYPES",
    "SAMPLERS",
    "SPACINGS",
    "Denoiser",
    "NoiseSchedule",
    "add_noise",
    "check_inputs",
    "cosine_betas",
    "ddim_step",
    "ddpm_step",
    "decoder_nll",
    "denoising_loss",
    "dpmpp_2m_step",
    "drop_condition",
    "elbo_terms",
    "elbo_weight",
    "extract",
    "forward_step",
    "gaussian_kl",
    "gaussian_mixture_denoiser",
    "gaussian_mixture_sample",
    "guided",
    "half_log_snr",
    "in_interval",
    "linear_betas",
    "log_snr_timesteps",
    "logit_normal_timesteps",
    "noise_like",
    "posterior",
    "predict_noise",
    "predict_x0",
    "prior_kl",
    "sample",
    "sampling_loop",
    "scaled_linear_betas",
    "shift_timesteps",
    "snr",
    "target",
]
