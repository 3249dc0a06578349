"""Weights on disk: our own files with their cards, and our networks under the names of diffusers and transformers.

Our own: `artifacts` (save, find, load) and `cards` (the JSON beside the weights). In: `load_parts`, `load_vae`,
`load_unet`, `load_text_encoder` and `load_tokenizer` (in `pretrained`) read a Stable Diffusion 1.x folder in diffusers'
format, or fetch one by its hub name: safetensors only, in float32 or half precision, text encoders with and without
the prefix `text_model.`, VAEs with today's attention names and with those of diffusers up to 0.16. Out:
`pipeline_to_diffusers` and `save_pipeline` (in `export`). When two networks that should agree do not:
`first_difference` (in `compare`).

Not supported; each is refused with an error that says so:
- Stable Diffusion 2.x (another text encoder, linear projections, a list of head counts);
- SDXL, Stable Diffusion 3, Flux and every other pipeline than `StableDiffusionPipeline`;
- U-Nets with more input channels, for inpainting, depth or edits by instruction;
- LoRA files and textual inversions;
- single-file checkpoints (.ckpt or .safetensors in the layout of the original latent-diffusion code);
- pickled weights (.bin, .ckpt): a pickle can run any code, so none is ever opened;
- weights in several shards;
- schedules rescaled to zero terminal signal (`rescale_betas_zero_snr`) and `thresholding`.
The safety checker of a folder is not read: our pipeline has none.
"""
