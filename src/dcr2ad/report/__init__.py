"""Tables, figures and self-contained pages; the only plotting code.

diagnosis.py     diagnoses -> the inspection page
run_report.py    a run folder -> the page over it; run_folder.py reads the folder
tables.py        evaluation reports -> rows, CSV, Markdown
overlay.py       the visual expert's map: as a data URI, and laid over its photograph
figures.py       numbers -> inline SVG; alone imports matplotlib
page.py          templates and inline pictures
paper_tables.py  the paper's Tables 1 to 4, transcribed in paper_tables.json
"""
