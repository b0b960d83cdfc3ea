"""The WSGI entry point, for gunicorn and for `flask --app wsgi`."""

import logging
import sys

from dotenv import load_dotenv

from todo_service import create_app
from todo_service.envelope import RequestIdFilter
from todo_service.settings import SettingsError

load_dotenv()

# One handler for the service and its libraries: a line starts with time and level and ends with its
# request. gunicorn has a handler of its own.
handler = logging.StreamHandler()
handler.addFilter(RequestIdFilter())
logging.basicConfig(
    format=(
        "time=%(asctime)s level=%(levelname)s logger=%(name)s %(message)s request_id=%(request_id)s"
    ),
    datefmt="%Y-%m-%dT%H:%M:%S%z",
    handlers=[handler],
)

try:
    app = create_app()
except SettingsError as error:
    sys.exit(f"todo-service cannot start: {error}")
