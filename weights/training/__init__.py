"""How the bundled demo model is made, measured and shown. The service imports nothing from here."""
