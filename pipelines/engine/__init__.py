"""The step loop: what runs next, and what becomes of it."""
