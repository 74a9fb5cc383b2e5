"""The commands of python -m aesthetic, a file for each or for a few that belong together.

What is imported at their tops answers --help and bad values at once; torch and the models come in with the command
that needs them.
"""
