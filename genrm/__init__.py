from soundrl.fapo.extra import check_extra

check_extra("soundrl.genrm")
