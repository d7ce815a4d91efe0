"""A short campaign; `make chaos` does a long one. No other test may share the cluster meanwhile."""

from __future__ import annotations

from chaos import Campaign


def test_a_tormented_study_ends_as_one_left_in_peace(cluster, tmp_path):
    campaign = Campaign(cluster, tmp_path, tasks=1, epochs=40, pause=(1.5, 4.0))
    summary = campaign.run(events=5, seed=25)
    print(summary.as_text())
    assert summary.identical
    assert len(summary.events) >= 5
