"""What the tests of every command ask of an error."""


def one_line(capsys, code, *words):
    """Exit code 2 and one line on stderr with these words."""
    err = capsys.readouterr().err
    assert code == 2
    assert err.count("\n") == 1, err
    assert err.startswith("vae-fast: error: ")
    for word in words:
        assert str(word) in err
    assert "Traceback" not in err
