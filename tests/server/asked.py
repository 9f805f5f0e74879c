"""How the tests of the service ask, and what they look for in answers and in the data folder."""

import base64

PROMPT = "a person smiles wearing a green shirt in front of a yellow wall"


def data_url(picture):
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def ask(client, picture, name="me.png", headers=None, **fields):
    """POST /v1/videos as a form."""
    files = {"input_reference": (name, picture, "image/png")} if picture is not None else None
    data = {"prompt": PROMPT, **fields}
    if files is None:
        return client.post("/v1/videos", json=data, headers=headers)
    return client.post("/v1/videos", data=data, files=files, headers=headers)


def refused(answer, status, code, param=None):
    """The error of an answer that must be one, in the API's form."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) >= {"message", "type", "code", "param"}
    assert (error["code"], error["param"]) == (code, param), error
    assert error["message"].strip()
    assert "Traceback" not in answer.text
    return error


def left(client):
    """Files that lie in the data folder beside the database."""
    folder = client.service.folder.path
    return sorted(
        str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file() and "lynx-video.db" not in one.name
    )
