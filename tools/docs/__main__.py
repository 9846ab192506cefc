import sys

import tools.docs as docs


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        found = [f"{name} is stale: run `make docs`" for name in docs.stale()]
        found += docs.unlisted()
        found += docs.unexplained_reasons()
        found += [
            f"{page.relative_to(docs.ROOT)}: {problem}"
            for page in docs.pages()
            for problem in docs.problems(page)
        ]
        if found:
            sys.exit("\n".join(found))
    elif sys.argv[1:]:
        sys.exit(docs.__doc__)
    else:
        for name, make in docs.GENERATED.items():
            (docs.ROOT / name).parent.mkdir(parents=True, exist_ok=True)
            (docs.ROOT / name).write_text(make())


if __name__ == "__main__":
    main()
