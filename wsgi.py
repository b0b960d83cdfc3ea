"""The WSGI entry point, for gunicorn and for `flask --app wsgi`."""

import sys

from dotenv import load_dotenv

from todo_service import create_app, log
from todo_service.ops import commands
from todo_service.settings import Settings, SettingsError

load_dotenv()

try:
    settings = Settings.from_env()
    log.configure(settings.log_format)
    app = create_app(settings)
    commands.init_app(app, settings)
except SettingsError as error:
    sys.exit(f"todo-service cannot start: {error}")
