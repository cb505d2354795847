"""From runs to tables, plots and pages."""
