"""Sessions of languages other than Python, each with what this machine has installed."""

from typing import Any

import pytest

from roost.agent.interpreters import find_interpreters
from tests.servers import Caller

PROGRAMS = {
    "c": ("main.c", '#include <stdio.h>\nint main(void) { printf("%d\\n", 6 * 7); }'),
    "cpp": ("main.cpp", "#include <iostream>\nint main() { std::cout << 6 * 7 << std::endl; }"),
    "golang": ("main.go", 'package main\nimport "fmt"\nfunc main() { fmt.Println(6 * 7) }'),
    "haskell": ("main.hs", "main = print (6 * 7)"),
    "java": ("Main.java", "class Main { public static void main(String[] a) { System.out.println(6 * 7); } }"),
    "julia": ("main.jl", "println(6 * 7)"),
    "lua": ("main.lua", "print(6 * 7)"),
    "nodejs": ("main.js", "console.log(6 * 7)"),
    "octave": ("main.m", "printf('%d\\n', 6 * 7)"),
    "perl": ("main.pl", 'print 6 * 7, "\\n"'),
    "php": ("main.php", '<?php echo 6 * 7, "\\n";'),
    "r": ("main.R", 'cat(6 * 7, "\\n", sep = "")'),
    "ruby": ("main.rb", "puts 6 * 7"),
    "rust": ("main.rs", 'fn main() { println!("{}", 6 * 7); }'),
    "shell": ("main.sh", "echo $((6 * 7))"),
}
INSTALLED = {one.language: one for one in find_interpreters()}


@pytest.mark.parametrize("language", PROGRAMS)
async def test_a_program_is_built_and_executed(server: Caller, language: str) -> None:
    if language not in INSTALLED:
        pytest.skip(f"{language} is not installed")
    name, source = PROGRAMS[language]
    image = f"lablup/{language}:{INSTALLED[language].version}-ubuntu22.04"
    made = await server("POST", "/session", {"name": "class-7", "image": image})
    assert made.status == 201, made.body
    await server("PUT", f"/session/class-7/files/{name}", data=source.encode())

    options = {"clean": "*", "build": "*", "exec": "*"}
    body: dict[str, Any] = {"mode": "batch", "code": "", "runId": "first", "options": options}
    console = []
    for _ in range(100):
        result = (await server("POST", "/session/class-7", body)).body["result"]
        console += result["console"]
        if result["status"] == "finished":
            break
        body = {"mode": "continue", "code": "", "runId": "first", "options": None}

    assert "".join(text for kind, text in console if kind == "stdout").endswith("42\n"), console
    assert result["exitCode"] == 0


async def test_a_shell_keeps_its_variables_between_runs(server: Caller) -> None:
    assert (await server("POST", "/session", {"name": "class-7", "image": "bash"})).status == 201

    await server.execute("class-7", "answer=42")
    result = await server.execute("class-7", "echo $answer")

    assert result["console"] == [["stdout", "42\n"]]


@pytest.mark.parametrize("runtime", ["bubblewrap", "process"])
async def test_python_is_that_of_the_image(server: Caller, runtime: str) -> None:
    config = {"resource_opts": {"runtime": runtime}}
    made = await server("POST", "/session", {"name": "class-7", "image": "python", "config": config})
    code = "import subprocess, sys; print([subprocess.getoutput(f'{n} --version') for n in ('python', 'python3')])"

    result = await server.execute("class-7", code)

    assert made.status == 201, made.body
    version = INSTALLED["python"].version
    names = result["console"][0][1]
    assert names.count(f"Python {version}.") == 2, names
