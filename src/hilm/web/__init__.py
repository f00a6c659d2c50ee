"""A store in the browser: pages over the public verbs."""
