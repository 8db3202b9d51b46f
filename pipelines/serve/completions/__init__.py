"""/v1/completions: fields, the route, and its answer."""
