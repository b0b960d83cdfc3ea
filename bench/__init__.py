"""The service against a reference, a floor and a ceiling; see `python -m bench --help`."""
