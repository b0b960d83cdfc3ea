"""A to-do backend: each user's tasks in PostgreSQL, behind a REST API."""

from __future__ import annotations

from flask import Flask

from todo_service import database, log
from todo_service.auth import guard as auth
from todo_service.ops import commands
from todo_service.web import cors, errors
from todo_service.blueprints.docs import docs
from todo_service.blueprints.health import health
from todo_service.blueprints.tasks import tasks
from todo_service.web.routing import TaskIdConverter, UserIdConverter
from todo_service.schemas import MAX_BODY
from todo_service.settings import Settings

__version__ = "0.2.0"


def create_app(
    settings: Settings | None = None, authenticate: auth.Authenticator | None = None
) -> Flask:
    """Make the WSGI application.

    Settings come from the environment unless given. `authenticate` takes a request and returns the
    id of its user, or raises an HTTPException; without one, JWTs are verified as the settings say.
    Raises SettingsError.
    """
    settings = settings or Settings.from_env()
    app = Flask(__name__, static_folder=None)
    # One byte more than the limit: Werkzeug ends a chunked body there without an error.
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY + 1
    app.config["VERSION"] = __version__
    app.url_map.converters["user_id"] = UserIdConverter
    app.url_map.converters["task_id"] = TaskIdConverter
    # A user id may hold two slashes in a row, and a redirect would lose a request's body.
    app.url_map.merge_slashes = False
    app.logger.setLevel(settings.log_level)

    log.init_app(app)
    cors.init_app(app, settings)
    database.init_app(app, settings)
    auth.init_app(app, authenticate or auth.bearer(settings))
    errors.init_app(app)
    commands.init_app(app, settings)

    app.register_blueprint(tasks)
    app.register_blueprint(health)
    app.register_blueprint(docs)
    return app
