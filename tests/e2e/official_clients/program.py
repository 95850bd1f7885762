"""What a user of the compatible SDK writes; run with official clients and with ours, it must say the same.

`program.py OUTPUT`: uses the endpoint and key pair of the environment, and writes what it saw as JSON.
"""

import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

from ai.backend.client.exceptions import BackendAPIError  # noqa: E402
from ai.backend.client.session import Session  # noqa: E402


def main(output):
    seen = {}
    with Session() as api:
        seen["version"] = list(api.api_version)
        made = api.ComputeSession.get_or_create("python", name="official-1", envs={"A": "1"}, tag="t")
        seen["made"] = [made.created, made.status, made.name]
        again = api.ComputeSession.get_or_create("python", name="official-1")
        seen["again"] = [again.created, again.status, str(again.id) == str(made.id)]
        seen["runs"] = runs(made)
        seen["files"] = files(made)
        seen["errors"] = errors(api)
        seen["batches"] = batches(made)
        seen["completions"] = completions(made)
        seen["lives"] = lives(api)
        seen["templates"] = templates(api)
        info = made.get_info()
        seen["info"] = {key: info[key] for key in ("status", "image", "lang", "tag", "environ", "domainName")}
        seen["logs"] = "hello" in made.get_logs()["result"]["logs"]
        stats = made.destroy()["stats"]
        seen["ended"] = [stats["status"], sorted(stats)]
        seen["gone"] = problem(made.get_info)
    Path(output).write_text(json.dumps(seen, indent=1, sort_keys=True))


def runs(session):
    """Every way to run code that these clients share."""
    seen = {}
    seen["value"] = drive(session, "1 + 1")
    seen["streams"] = drive(session, "import sys\nprint('hello')\nprint('oh', file=sys.stderr)\nprint('bye')\n'v'")
    seen["state"] = [drive(session, "x = 20"), drive(session, "x + 1")]
    seen["failure"] = drive(session, "x / 0")
    seen["environment"] = drive(session, "import os\nprint(os.environ['A'], os.environ['BACKENDAI_SESSION_NAME'])")
    seen["input"] = drive(session, "print('hi', input('who? '))", ["Ann"])
    seen["password"] = drive(session, "import getpass\nprint(len(getpass.getpass('pin? ')))", ["1234"])
    seen["slow"] = drive(session, "import time\nfor i in range(3):\n    print(i, flush=True)\n    time.sleep(0.1)")
    started = session.execute("loop-1", code="import time\nwhile True: time.sleep(0.01)", mode="query")
    session.interrupt()
    seen["interrupted"] = finish(session, started)["exitCode"]
    return seen


def batches(session):
    """Runs of stages: all of them, none, and those that fail."""
    seen = {}
    opts = {"clean": "echo c", "build": "echo b >&2", "exec": "read x; echo got $x; exit 4"}
    seen["stages"] = stages(session, opts, ["me"])
    seen["skipped"] = stages(session, {"clean": None, "build": "", "exec": None})
    seen["failing build"] = stages(session, {"build": "exit 5", "exec": "echo never"})
    seen["own way"] = stages(session, {"clean": "*", "build": None, "exec": "*"})["told"]
    started = session.execute("batch-1", mode="batch", code="", opts={"exec": "echo on; sleep 60"})
    while not any(text.endswith("on\n") for _, text in started["console"]):
        started = session.execute("batch-1", mode="continue", code="")
    session.interrupt()
    seen["interrupted"] = finish(session, started)["exitCode"]
    return seen


def stages(session, opts, answers=()):
    """The statuses that a batch run goes through with their exit codes, and what it wrote."""
    answers, result = list(answers), session.execute(None, mode="batch", code="", opts=opts)
    told, streams = [], {"stdout": "", "stderr": ""}
    while True:
        for kind, text in result["console"]:
            streams[kind] += text
        if result["status"] != "continued":
            told.append([result["status"], result["exitCode"]])
        if result["status"] == "finished":
            return {"told": told, **streams}
        if result["status"] == "waiting-input":
            result = session.execute(result["runId"], code=answers.pop(0), mode="input")
        else:
            result = session.execute(result["runId"], code="", mode="continue")


def completions(session):
    """What the session says could follow; clients send the same question in several forms."""
    drive(session, "colourful = 1")
    opts = {"row": 0, "col": 5, "line": "colou", "post": ""}
    asked = session.complete("colou", opts)
    return {
        "asked": asked,
        "nothing": session.complete("nothing_like_it", {"row": 0, "col": 15, "line": "nothing_like_it", "post": ""}),
        "keys": sorted(asked["result"]),
    }


def lives(api):
    """Sessions that are renamed, restarted, and that end by themselves."""
    seen, create = {}, api.ComputeSession.get_or_create
    first = create("python", name="official-3", envs={"A": "1"})
    drive(first, "x = 1; open('kept.txt', 'w').write('k')")
    first.restart()
    seen["restarted"] = drive(first, "print(open('kept.txt').read(), 'x' in globals())")["stdout"]
    first.rename("official-4")
    again = create("python", name="official-4")
    seen["renamed"] = [
        again.created,
        str(again.id) == str(first.id),
        problem(api.ComputeSession("official-3").get_info),
    ]
    job = create("python", name="official-5", type_="batch", startup_command="echo done > out.txt; exit 3")
    seen["job"] = [job.created, job.status in ("RUNNING", "TERMINATING", "TERMINATED")]
    while problem(job.get_info) == "no error":
        time.sleep(0.05)
    later = create(
        "python", name="official-6", type_="batch", startup_command="true", starts_at="1d", enqueue_only=True
    )
    seen["later"] = [later.status, later.destroy()["stats"]["status"]]
    seen["no command"] = problem(create, "python", name="official-7", type_="batch")
    seen["gone twice"] = [again.destroy()["stats"]["status"], problem(again.destroy)]
    return seen


def templates(api):
    """A template from its writing to its end, and sessions of it."""
    spec = {"kernel": {"image": "python", "environ": {"A": "1"}, "run": {"bootstrap": "echo made > made.txt"}}}
    text = {"api_version": "v1", "kind": "taskTemplate", "metadata": {"name": "t-1", "tag": "t"}, "spec": spec}
    seen, write = {}, lambda: json.dumps([{"template": text, "name": "t-1"}])
    made = api.SessionTemplate.create(write())
    [item] = api.SessionTemplate.list_templates()
    seen["listed"] = [sorted(item), item["name"], item["is_owner"], item["id"] == made.template_id]
    session = api.ComputeSession.create_from_template(made.template_id, name="official-8", envs={"A": "2"})
    seen["made"] = [session.created, session.status, session.name]
    seen["ran"] = drive(session, "import os; print(os.environ['A'], open('made.txt').read())")["stdout"]
    session.destroy()
    spec["kernel"]["environ"] = {"A": "3"}
    seen["replaced"] = made.put(write())
    seen["read"] = json.loads(made.get("json"))["template"]["spec"]["kernel"]["environ"]
    seen["deleted"] = made.delete()
    seen["gone"] = [made.get("json"), problem(made.delete)]
    seen["no template"] = problem(api.ComputeSession.create_from_template, made.template_id, name="official-8")
    return seen


def drive(session, code, answers=()):
    """One run up to its end, as the polling clients do it."""
    result = session.execute(None, code=code, mode="query")
    return summary(finish(session, result, list(answers)))


def finish(session, result, answers=()):
    answers, console, options = list(answers), list(result["console"]), []
    while result["status"] != "finished":
        if result["status"] == "waiting-input":
            options.append(result["options"])
            result = session.execute(result["runId"], code=answers.pop(0), mode="input")
        else:
            result = session.execute(result["runId"], code="", mode="continue")
        console += result["console"]
    return {"exitCode": result["exitCode"], "console": console, "options": options, "keys": sorted(result)}


def summary(result):
    streams = {"stdout": "", "stderr": ""}
    for kind, text in result["console"]:
        streams[kind] += text
    streams["stderr"] = streams["stderr"].splitlines()[-1:]
    return {**streams, "exitCode": result["exitCode"], "options": result["options"], "keys": result["keys"]}


def files(session):
    seen = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "sub dir").mkdir()
        names = ["a.txt", "sub dir/b c.txt", "ü.txt"]
        for name in names:
            (base / name).write_text(name)
        session.upload([base / name for name in names], basedir=base)
        listed = json.loads(session.list_files(".")["files"])
        seen["listed"] = sorted((entry["filename"], entry["size"]) for entry in listed if entry["mode"][0] == "-")
        seen["nested"] = [entry["filename"] for entry in json.loads(session.list_files("sub dir")["files"])]
        seen["read"] = drive(session, "print(open('sub dir/b c.txt').read(), open('ü.txt').read())")["stdout"]
        target = base / "down"
        target.mkdir()
        session.download(["a.txt", "sub dir"], dest=target)
        seen["downloaded"] = sorted(
            (str(path.relative_to(target)), path.read_text()) for path in target.rglob("*") if path.is_file()
        )
        seen["missing"] = session.list_files("nope")["files"]
    return seen


def errors(api):
    """What goes wrong, as a status and a type."""
    create = api.ComputeSession.get_or_create
    session = api.ComputeSession("official-1")
    return {
        "no image": problem(create, "no-such-image", name="official-2"),
        "conflict": problem(create, "python", name="official-1", no_reuse=True),
        "too little": problem(create, "python", name="official-2", resources={"mem": "1m"}),
        "unknown slot": problem(create, "python", name="official-2", resources={"tpu": 1}),
        "no folder": problem(create, "python", name="official-2", mounts=["nothing"]),
        "no session": problem(api.ComputeSession("official-9").get_info),
        "no run": problem(session.execute, "nobody", code="", mode="continue"),
        "outside": problem(session.list_files, "/etc"),
    }


def problem(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except BackendAPIError as error:
        return [error.status, error.data["type"], sorted(error.data)]
    return "no error"


if __name__ == "__main__":
    os.chdir(tempfile.gettempdir())
    main(sys.argv[1])
