"""What gunicorn serves; see gunicorn.conf.py."""

from backend.app import create_app
from backend.settings import Settings

app = create_app(Settings.from_env())
