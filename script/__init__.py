"""What the shell scripts in this folder run."""
