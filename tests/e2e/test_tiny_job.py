"""What a person gets from one command: a job that succeeds with a report, or a refusal in one line."""


def test_a_job_that_cannot_run_is_refused_in_one_line_with_exit_code_2(make_run):
    run = make_run("nomodel", steps=3, change=lambda spec: spec["model"].update(uri="file:///nowhere/model"))
    run.start()
    assert run.commands[-1].wait(60) == 2, run.said()
    assert "nowhere" in run.said()
