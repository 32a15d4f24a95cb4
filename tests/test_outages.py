"""That no connection can be opened is said in the log: when it begins, while it lasts, and at its end. No secrets."""

import logging

import pytest
from conftest import LIMIT, config, wait_for
from models import MODELS
from models import open_model as open_model
from support import tidy as tidy

from pgdbpool import Error, herald
from pgdbpool.core import outage
from pgdbpool.testing import Cluster, Impostor

SECRET = "s3cr3t-w0rd"
WRONG = "wr0ng-w0rd"


@pytest.fixture(scope="module")
def guarded():
    """A server that asks for a password."""
    with Cluster(standbys=0, password=SECRET) as cluster:
        yield cluster.primary


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch):
    """A minute is shorter here."""
    monkeypatch.setattr(outage, "SAY_AGAIN", 0.3)
    monkeypatch.setattr(herald, "_EVERY", 0.01)


def tries(model):
    """One caller, who gets nothing, or a connection."""
    try:
        return model.ask("default", "select 1", timeout=0.1) == 1
    except Error:
        return False


def said(caplog, *words):
    return [each for each in caplog.messages if all(word in each for word in words)]


@pytest.mark.parametrize("type", MODELS)
def test_a_wrong_password_is_said_until_it_is_right(type, guarded, open_model, caplog):
    words = [WRONG]
    place = guarded.endpoint(ssl="disable", **{"pass": lambda: words[0]})
    with caplog.at_level(logging.INFO, "pgdbpool"):
        model = open_model(config(place, type=type))
        wait_for(
            lambda: tries(model) or said(caplog, "cannot be opened (misconfigured)", "password authentication failed")
        )
        wait_for(lambda: tries(model) or said(caplog, "cannot be opened for", "password authentication failed"))
        words[0] = SECRET
        wait_for(lambda: tries(model), 3 * LIMIT)
        wait_for(lambda: tries(model) and said(caplog, "can be opened again after"))
    assert len(said(caplog, "cannot be opened (misconfigured)")) == 1
    assert len(said(caplog, "can be opened again")) == 1
    assert said(caplog, SECRET) + said(caplog, WRONG) == []


@pytest.mark.parametrize("type", MODELS)
def test_a_server_that_stays_in_start_up_is_said(type, open_model, caplog):
    with Impostor("57P03") as server:
        model = open_model(config(server, type=type))
        wait_for(lambda: tries(model) or said(caplog, "cannot be opened (starting)", "is starting up"))
        wait_for(lambda: tries(model) or said(caplog, "cannot be opened for", "(starting)", "is starting up"))
    assert all(record.levelno == logging.WARNING for record in caplog.records)
