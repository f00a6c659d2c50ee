"""One file per page: what a view becomes as HTML."""
