"""Images as files, with PIL and no torch: uploads and archives with limits, init image and mask, metadata, grids.

pipeline/img2img.py encodes init image and mask.
"""
