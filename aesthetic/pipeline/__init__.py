"""From the prompt to images: tokens, target, conditioning, prompt_embeds, schedulers, img2img, sampling.

Plain and slow: acceleration/ replaces modules, never the steps here.
"""
