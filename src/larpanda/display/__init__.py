"""Events and numbers to look at: pages, pictures, figures."""
