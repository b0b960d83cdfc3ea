"""The WSGI entry point, for gunicorn and for `flask --app wsgi`."""

import sys

from dotenv import load_dotenv

from todo_service import create_app, log
from todo_service.settings import SettingsError

load_dotenv()
log.configure()

try:
    app = create_app()
except SettingsError as error:
    sys.exit(f"todo-service cannot start: {error}")
