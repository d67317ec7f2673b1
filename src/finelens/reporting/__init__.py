"""The report of a run, one HTML file that opens offline; the model card; the page of one photograph; the review sheet."""
