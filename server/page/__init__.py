"""The page at ``/``: plain HTML, CSS and JavaScript modules, served as they lie in the package."""
