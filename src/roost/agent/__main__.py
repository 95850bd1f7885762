"""`python -m roost.agent doctor [--json]`"""

import sys

import msgspec

from roost.agent.doctor import describe, diagnose


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    if arguments not in (["doctor"], ["doctor", "--json"]):
        sys.stderr.write("usage: python -m roost.agent doctor [--json]\n")
        return 2
    diagnosis = diagnose()
    text = msgspec.json.encode(diagnosis).decode() if "--json" in arguments else describe(diagnosis)
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
