"""How the bundled demo model was made. Nothing here is needed to draw, and nothing here imports the service."""
