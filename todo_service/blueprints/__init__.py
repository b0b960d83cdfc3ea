"""The routes, in one module for each subject."""
