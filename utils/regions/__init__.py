"""From boxes to regions, all of it arithmetic: boxes, a region and its file, the two rules, and what is measured.

Boxes are (xmin, ymin, xmax, ymax) in voxels, half-open, x along W and y along H.
"""
