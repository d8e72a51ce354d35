"""The result of a loop: measured answers, plots, `report.json` and `report.html`."""
