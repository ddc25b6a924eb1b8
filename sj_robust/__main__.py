"""`python -m sj_robust` is `sj-robust`, for launchers such as torchrun."""

from sj_robust.cli import main

if __name__ == "__main__":
    main()
