"""`python -m remembrandt` is the command `remembrandt`."""

from remembrandt.cli import app

if __name__ == "__main__":
    app(prog_name="remembrandt")
