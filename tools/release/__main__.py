import datetime
import sys

import tools.release
from tools.release import checks
from tools.release.cut import cut, set_next, snapshot


def main() -> None:
    try:
        match sys.argv[1:]:
            case ["check"]:
                if found := list(checks.problems()):
                    sys.exit("\n".join(found))
            case ["snapshot"]:
                print(snapshot())
            case ["next", version]:
                print(set_next(version))
            case ["cut", version]:
                print(cut(version, datetime.datetime.now(datetime.UTC).date()))
            case _:
                sys.exit(tools.release.__doc__)
    except ValueError as error:
        sys.exit(f"release: {error}")


if __name__ == "__main__":
    main()
