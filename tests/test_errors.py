"""A wrong input in a notebook is one line; where it was raised is there for who asks."""

from IPython.core.interactiveshell import InteractiveShell


def test_one_line_in_a_notebook_and_all_of_it_on_demand(capsys, monkeypatch):
    shell = InteractiveShell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    shell.run_cell("import labkit as lk; lk.Gradient.parse('0,y')", store_history=True)
    said = "".join(capsys.readouterr())
    assert said.strip() == (
        "LabkitError: entry 2 of the layer weights, 'y', is not a number; write the weights as "
        "0,0,0.5,1 or with runs as 0x2,0.5,1 (%tb shows where)"
    )
    shell.run_cell("%tb", store_history=True)
    said = "".join(capsys.readouterr())
    assert "Traceback (most recent call last)" in said
    assert "gradient.py" in said
