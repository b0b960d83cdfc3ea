"""A to-do backend: each user's tasks in PostgreSQL, behind a REST API."""

from __future__ import annotations

from flask import Flask

from todo_service import database, log
from todo_service.auth import guard
from todo_service.blueprints.changes import changes
from todo_service.blueprints.docs import docs
from todo_service.blueprints.health import health
from todo_service.blueprints.lists import lists
from todo_service.blueprints.tasks import tasks
from todo_service.settings import Settings
from todo_service.web import body, cors, errors, routing

__version__ = "0.3.0"


def create_app(
    settings: Settings | None = None, authenticate: guard.Authenticator | None = None
) -> Flask:
    """Make the WSGI application.

    Settings come from the environment unless given. `authenticate` takes a request and returns the
    id of its user, or raises an HTTPException; without one, JWTs are verified as the settings say.
    Raises SettingsError.
    """
    settings = settings or Settings.from_env()
    app = Flask(__name__, static_folder=None)
    app.config["VERSION"] = __version__
    app.logger.setLevel(settings.log_level)

    log.init_app(app)
    cors.init_app(app, settings)
    database.init_app(app, settings)
    guard.init_app(app, authenticate or guard.bearer(settings))
    routing.init_app(app)
    body.init_app(app)
    errors.init_app(app)

    for blueprint in (tasks, lists, changes, health, docs):
        app.register_blueprint(blueprint)
    return app
