"""From the prompt to images: tokens, target, conditioning, prompt_embeds, schedulers, img2img, sampling.

acceleration/ replaces the modules that these steps call, not the steps.
"""
