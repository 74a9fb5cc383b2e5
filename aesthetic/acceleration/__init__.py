"""The same results, sooner, on a GPU only: UNet, decoder and personalization written out, replayed as CUDA graphs.

These modules take the place of diffusers' and of Personalizer, behind the same calls, and compute the same.
"""
