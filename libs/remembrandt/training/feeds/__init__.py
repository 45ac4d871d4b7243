"""What training runs are fed with: examples of a database, their latents, their neighbours."""
