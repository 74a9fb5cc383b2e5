"""The same service on many GPUs and machines: Ray Data draws piles of requests, Ray Serve answers HTTP.

Only this room imports Ray. What a request means and how it is drawn is left to `service`.
"""
