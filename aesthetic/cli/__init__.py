"""The command line, a file for each command or for a few that belong together.

Imports at their tops answer --help and bad values at once; torch and the models come in with the command that needs
them.
"""
